import numpy as np
COEFFICIENTS = np.full((4, 96), 12*8+2, np.int64)
REACH = np.full((4, 6), 14*8+5, np.int64)
MOTION = np.full((2, 4, 2), 12*8+3, np.int64)
