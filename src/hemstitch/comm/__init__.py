"""The reducer: the one way in which an algorithm speaks to other workers."""
