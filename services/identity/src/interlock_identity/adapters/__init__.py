"""Identity's ports over Postgres and the auth server, and in memory for tests."""
