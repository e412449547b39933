"""Networks: feed-forward, time-delay, recurrent, small vision nets."""
