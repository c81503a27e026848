"""The upstream file of nginx, kept in step with the workers."""
