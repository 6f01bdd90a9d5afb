// FontAwesome replaces <i> by <svg>, which loses the handlers of ipywidgets' Play buttons: let it nest instead.
window.FontAwesomeConfig = { autoReplaceSvg: "nest" };
