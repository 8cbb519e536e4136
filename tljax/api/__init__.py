"""The Python API, whose names `import tljax` offers: encoders, runs, sweeps, data in memory, parts for own loops."""
