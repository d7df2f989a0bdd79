"""Where histories of runs are kept, and how they survive crashes."""
