"""Policy: decides about the processes. Pure: values go in, actions come out."""
