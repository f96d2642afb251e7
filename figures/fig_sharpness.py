"""Each sharpness measure of the whole model along alpha, one line per pair.

python figures/fig_sharpness.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("sharpness_along_alpha", __doc__)

if __name__ == "__main__":
    main()
