"""OOD gain by the whole model's sharpness, one point per pair: as it is, and with the covariates held fixed.

python figures/fig_sharpness_and_gain.py runs/demo --group styles --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("sharpness_and_gain", __doc__)

if __name__ == "__main__":
    main()
