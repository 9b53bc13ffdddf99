"""The vault's ports, made real: Postgres, the KMS, Slack, identity."""
