"""A slice of the loss along one direction or in the plane of two, from the table that sharpscope.loss_slice returns.

>>> path, H = pair.path(), sharpscope.HessianOperator(probe, pair.path().at(0.5), pair.moving)
>>> top = sharpscope.curvature.top_eigenpairs(H, 2, seed=0)
>>> axes = [H.split(v) for v in top.vectors]
>>> sharpscope.loss_slice(probe, path.at(0.5), axes, reach=2.0).to_csv("slice.csv", index=False)

python figures/fig_slice.py slice.csv --names "eigenvector 1" "eigenvector 2" --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("loss_slice", __doc__)

if __name__ == "__main__":
    main()
