"""In Search of the Successful Interpolation: sharpness of every layer along alpha, with the stragglers marked.

From tables/sharpness.csv and stragglers.csv. By default a straggler is a layer whose own interpolation costs, the only
definition that the paper has published.

python figures/paper_sharpness_layers.py runs/demo --measure hessian_trace --criterion instability --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_sharpness_layers", __doc__)

if __name__ == "__main__":
    main()
