"""A container and its supervisors under random faults, and what must be true all the same."""
