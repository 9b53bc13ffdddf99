"""Projects, agents and runs of the agents platform, as the user."""
