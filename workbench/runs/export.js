// In the page that draws figures for export: every image is drawn with the shipped font, which PDF, SVG and PNG then
// carry, and a PDF has the name of its figure as its title. An SVG drawn as an image knows no font but its own.
(() => {
  const css = document.getElementById("fonts").textContent;
  const loaded = Promise.all([...document.fonts].map((font) => font.load()));
  const draw = Plotly.toImage;
  Plotly.toImage = async (figure, options) => {
    await loaded;
    document.title = figure.layout.meta?.title ?? "figure";
    const vector = { ...options, format: "svg", imageDataOnly: true, scale: 1 };
    const plain = await draw(figure, vector);
    const svg = plain.replace(/<svg[^>]*>/, (tag) => `${tag}<style>${css}</style>`);
    if (options.format === "svg") {
      return options.imageDataOnly ? svg : `data:image/svg+xml,${encodeURIComponent(svg)}`;
    }
    const canvas = document.createElement("canvas");
    const image = await Plotly.Snapshot.svgToImg({ ...options, canvas, svg, promise: true });
    return options.imageDataOnly ? image.replace(/^data:image\/\w+;base64,/, "") : image;
  };
})();
