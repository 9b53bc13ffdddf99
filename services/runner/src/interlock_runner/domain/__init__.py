"""What a run is, without any network."""
