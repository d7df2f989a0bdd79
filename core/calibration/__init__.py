"""From calibration data of any form to statistics of the values that ops read and write."""
