"""The drivers: databases, gRPC peers, Slack."""
