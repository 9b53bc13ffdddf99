"""What the vault knows without asking anybody: installations, envelopes, the audit chain."""
