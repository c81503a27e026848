"""Settings: the table in which they are declared, the sources that they are read from, and the app that they name."""
