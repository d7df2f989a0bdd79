"""What strategies believe of losses and costs, and which picks of schemes that leaves."""
