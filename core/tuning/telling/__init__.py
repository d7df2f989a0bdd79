"""What a run tells of its way: phases, the time that is left, and the display of both."""
