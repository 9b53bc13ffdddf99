"""What identity knows: people, workspaces, links and agents, as values."""
