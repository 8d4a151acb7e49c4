"""Measurement: paired latencies, time to compile, growth of the analysis with depth."""
