"""Results and their parts: numpy arrays with labelled axes."""
