"""In Search of the Successful Interpolation: sharpness against OOD accuracy, across models and along the path.

From tables/sharpness.csv and accuracy.csv; a single run's correlations.csv gives the coefficient.

python figures/paper_sharpness_correlation.py runs/demo --measure hessian_trace --alpha 0.5 --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_sharpness_correlation", __doc__)

if __name__ == "__main__":
    main()
