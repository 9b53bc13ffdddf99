"""Grants and JWT families: one table, one strict verify."""
