"""The worker: takes admitted requests out of the inbox and converses."""
