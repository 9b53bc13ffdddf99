"""What the gateway knows of Slack and of conversations, without any I/O."""
