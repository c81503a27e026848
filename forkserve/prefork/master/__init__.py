"""The master: forks the workers, and carries out the plans of the policy and the commands of users."""
