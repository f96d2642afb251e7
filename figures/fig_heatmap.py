"""Layer x alpha heat map of one sharpness measure, one panel per pair.

python figures/fig_heatmap.py runs/demo --measure lambda_max --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("heatmap", __doc__)

if __name__ == "__main__":
    main()
