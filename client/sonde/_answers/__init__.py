"""What comes back: results and their parts, as numpy arrays with labelled axes."""
