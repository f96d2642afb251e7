"""In Search of the Successful Interpolation: accuracy along the path with sparse straggler layers and without.

From tables/repair.csv and accuracy.csv. Beside the paper's figure it has controls: random other layers, and all layers.
The gain at equal ID accuracy, which this figure does not show, is in figures/fig_repair.py.

python figures/paper_sharpness_repair.py runs/demo --target weight --density 0.5 --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_sharpness_repair", __doc__)

if __name__ == "__main__":
    main()
