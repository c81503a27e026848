"""What passes between processes: messages, how they become bytes, and the promise of an answer."""
