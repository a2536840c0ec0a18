"""What other projects can use to test storages, savers and their own glue: conformance, faults, crash states."""
