"""What comes from outside: the launcher, signals, notices of a cloud, the process and its code."""
