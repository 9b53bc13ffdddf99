"""The internet-facing half: verify, grant, store; and the pages for browsers."""
