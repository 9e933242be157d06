"""How work runs on a cluster: stages, tasks, plans and executors. No torch, no HDF5, no CLIP."""
