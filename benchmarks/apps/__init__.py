"""Small apps that the benchmarks serve, beside those of example_apps."""
