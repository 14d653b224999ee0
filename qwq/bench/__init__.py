"""The project beside its peers: interleaved in one run, medians of ratios, the machine's limits. `qwq bench NAME`."""
