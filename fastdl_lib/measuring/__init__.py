"""The machine card, clocks, measurements with their provenance, costs counted beforehand."""
