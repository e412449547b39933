"""The order of the updates: backward SGD, windows, fixed tail, brackets, order average."""
