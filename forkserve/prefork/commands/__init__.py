"""Commands: how they are called, sent to the workers, done there, and answered."""
