"""Policy: what is to be done about the workers. Pure: values go in, actions come out."""
