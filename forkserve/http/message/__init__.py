"""HTTP messages as values: heads, fields, bodies, answers. Pure."""
