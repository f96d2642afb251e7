"""Correlation of every layer's sharpness with OOD gain: across pairs (evidence) or along one path (descriptive).

python figures/fig_correlation.py runs/demo --scope pairs --alpha 0.3 --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("correlation", __doc__)

if __name__ == "__main__":
    main()
