"""Many workers: parameter averaging, parameter server, virtual replicas, simulated clock."""
