"""The agents platform stand-in."""
