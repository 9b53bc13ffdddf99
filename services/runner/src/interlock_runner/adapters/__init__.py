"""The agents platform over HTTP."""
