"""Test beds: places where the shim meets what this machine alone cannot offer."""
