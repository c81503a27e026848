"""The master: it forks the workers, and carries out what the policy plans and what users command."""
