"""The method once more in plain float64 NumPy, written from the equations: loops, no cleverness."""
