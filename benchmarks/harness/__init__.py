"""What the benchmarks share: the states, the processes that run one library each, the statistics, the tables."""
